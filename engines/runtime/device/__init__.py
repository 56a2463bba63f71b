"""The GPU as the runtime sees it: the driver's calls, memory on the device and beside it, arrays of other libraries."""
