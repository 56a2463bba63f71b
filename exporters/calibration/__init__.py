"""The ranges that INT8 quantises, measured on calibration data."""
