"""The operating system: priorities, memory, the parent process and logs."""
