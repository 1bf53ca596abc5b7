"""Lines come out whole, however the network cuts them."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from podwire.cluster.kube.lines import LineSplitter

line = st.binary(min_size=1).filter(lambda b: b"\n" not in b and b"\r" not in b)


@given(st.lists(line), st.lists(st.integers(min_value=0)), st.sampled_from([b"\n", b"\r\n"]))
def test_any_cut_gives_the_same_lines(lines: list[bytes], cuts: list[int], ending: bytes) -> None:
    stream = b"".join(one + ending for one in lines)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    splitter = LineSplitter()
    given_back = []
    for start, end in itertools.pairwise(edges):
        given_back += splitter.feed(stream[start:end])
    assert given_back == lines


def test_an_unfinished_line_is_not_given() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b'{"a":1}\n{"b"') == [b'{"a":1}']
    assert splitter.feed(b"") == []
    assert splitter.feed(b":2}\n") == [b'{"b":2}']


def test_blank_lines_are_keepalives() -> None:
    assert LineSplitter().feed(b"\n\r\n\nx\n") == [b"x"]
