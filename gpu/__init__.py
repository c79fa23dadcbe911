"""OpenVINO's GPU plugin without a GPU: run on an emulated one, and compiled by Intel's driver for real chips."""
