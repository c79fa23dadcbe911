"""OpenVINO's GPU plugin without a GPU: execution on an emulated GPU, compilation by Intel's driver for real chips."""
