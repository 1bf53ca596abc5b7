"""The lab's kubelet: makes the Pods bound to its node run, and says how they are.

`python -m podwire.lab.kubelet`, one a node, inside the node's namespaces. By subject:

    agent        the process: ties the following together
    node_status  the Node object: registration, Lease, conditions
    node_addresses   its addresses, as they are on its links
    network      is the pod network ready; CNI for a pod
    pods         which pods should be here, each with its worker
    worker       one pod's life, as a level-triggered loop
    containers   the containers of a pod: what a start takes, signals, back-off
    container    one container's life within it
    records      what is kept on disk, so that a restarted kubelet adopts what runs
    spec         the part of a Pod that matters here, typed
    environment, files, attachment, status     pure: spec and records in, values out
    events       Event objects
    server, exec_session, log_stream           HTTP for `kubectl logs` and `exec`

Nothing is imported here: a node must be up in a fraction of a second.
"""
