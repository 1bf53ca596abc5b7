"""The faces of a `Trace`: a column of hops, a JSON document, a picture.

What lives here: pure functions from a `Trace` to text, one module (or package) a face, and the
words that they share. What does not: any judgement of what was seen; that is in the `Trace`.
"""
