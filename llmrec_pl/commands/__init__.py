"""Plain commands of the command line, one module each; none imports torch before it must."""
