"""No reports of use over the network."""

from __future__ import annotations

import sys


def off() -> None:
    """Keep OpenVINO and NNCF, where they are not imported yet, from reporting what is done with them.

    Their converters send a request for every kind of operation in a graph, each from a process of its own that is
    waited for up to three seconds. Without the package that does it they send nothing, and say so in their code.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
