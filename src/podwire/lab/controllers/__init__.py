"""What a control plane does on its own: small loops over the API's objects.

    namespaces       the built-in ones exist; what is in a deleted one goes with it
    pod_cidrs        each node gets a block of the cluster's pod addresses
    scheduler        each pod gets a node
    node_lifecycle   a node that stops renewing its Lease is not Ready; pods of a removed one go
    events           what happened, recorded; and forgotten after an hour

They run in the API server's process, over `api.objects` and `api.hub` only, so that each would also
work over a client. A controller keeps what it needs to know in memory, takes it up anew (`sync`)
when it starts or has failed, and then follows the changes.
"""

from podwire.lab.controllers.namespaces import ensure_namespaces
from podwire.lab.controllers.run import ControllerSettings, make_controllers, run_controllers

__all__ = ["ControllerSettings", "ensure_namespaces", "make_controllers", "run_controllers"]
