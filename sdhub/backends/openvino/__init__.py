"""OpenVINO: through optimum-intel's exporter and NNCF, in the layout that `OV*Pipeline.from_pretrained` loads."""

from sdhub.backends.openvino.backend import BACKEND

__all__ = ["BACKEND"]
