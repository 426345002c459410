"""What executor and trainer say to each other: gRPC over a Unix socket, bytes in pieces of 1 MiB.

One method, ``/fedretrain.Trainer/Handle``, stream to stream. Each direction sends a header, then the records::

    header    UTF-8 JSON: {"format": "fedretrain.wire/1", "size": bytes that follow, ...}; a question has also
              "id" (of the message, the same when it is asked again), "message_type", and "decline": a code where the
              trainer shall sign that refusal instead of doing what the message asks
    then      the RecordDict as Flower's protobuf, in pieces of at most 1 MiB

Invariants: no piece and no sum exceeds what was announced, and what was announced is bounded.
"""

SERVICE = "fedretrain.Trainer"
METHOD = f"/{SERVICE}/Handle"
FORMAT = "fedretrain.wire/1"
