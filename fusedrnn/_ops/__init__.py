"""What torch is told of the operators beside their kernels."""
