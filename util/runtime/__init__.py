"""Around the machine: errors, exit statuses, signals, processes, random numbers, memory, files."""
