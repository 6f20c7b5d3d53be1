"""The operating system: starting processes, priorities, memory, the parent process and logs."""
