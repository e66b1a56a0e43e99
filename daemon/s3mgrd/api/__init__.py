"""HTTP: what the control plane offers to the outside, and nothing it decides.

    server     sockets, connections, peer credentials, graceful stop
      gate     every request: id, safety headers, access log, a nursery that ends with it
        app    Quart-Trio application: routes to handlers, errors to problems
          resources/   one module per resource; handlers know neither Quart nor sockets
            mounts.service.MountService

Concurrency: a handler never owns work. It asks the service, which records the intent; a client that vanishes
cancels the handler, and that only stops the waiting.
"""
