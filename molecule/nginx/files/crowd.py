"""Prints the answer to one request more than a number of them that are half sent: crowd.py ADDRESS PORT NUMBER."""

from __future__ import annotations

import http.client
import sys
import time
from contextlib import ExitStack, closing

address, port, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with ExitStack() as stack:
    for _ in range(number):
        connection = stack.enter_context(closing(http.client.HTTPConnection(address, port, timeout=10)))
        connection.putrequest("POST", "/events")
        connection.putheader("Content-Length", "10")
        connection.endheaders()
    # nginx may not have read the headers of them all yet
    deadline = time.monotonic() + 10
    status = 0
    while status != 429 and time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address, port, timeout=10)
        connection.request("POST", "/events")
        answer = connection.getresponse()
        status, body = answer.status, answer.read().decode()
        connection.close()
    print(status, body)
