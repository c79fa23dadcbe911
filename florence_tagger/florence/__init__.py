"""Florence-2 on OpenVINO, without torch or transformers: a frame in, detections out."""
