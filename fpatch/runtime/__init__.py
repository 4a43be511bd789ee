"""The running process: devices, the recorded execution, memory and parallel processes."""
