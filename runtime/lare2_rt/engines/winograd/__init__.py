"""OpenVINO on graphs with Winograd's convolutions."""
