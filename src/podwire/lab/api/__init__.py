"""The embedded Kubernetes API server of a lab.

Speaks the Kubernetes REST protocol over SQLite for just the kinds that the network needs. It is
a lab's: production runs on a real API server. From the wire inwards, each its own module:

    auth, tls, server        who may connect; sockets and process life
    rest, watching           HTTP verbs on resources; the watch stream
    discovery, openapi, table, node_proxy
    negotiation, request_info   bodies and Accept headers; what a path means
    objects, lifecycle       what create, update, patch and delete *mean* for an object
    kinds, registry          one module a kind: names, schema, columns, rules
    schema, names, patching, strategic, selectors   pure vocabulary
    store, hub               versions in SQLite; telling the watchers

Adding a kind is adding one module to `kinds` and one entry in its `KINDS`. Controllers
(`podwire.lab.controllers`) use `objects` and `hub`, never HTTP.

Nothing is imported here: `python -m podwire.lab.api` must be ready in a fraction of a second.
"""
