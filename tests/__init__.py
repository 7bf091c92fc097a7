"""The tests of cloudcore."""
