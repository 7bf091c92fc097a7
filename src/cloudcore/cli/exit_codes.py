"""What a command says by its exit code.

==== ==========================================================================================
0    done, and all is as it should be
1    the answer is no: something is missing, differs, does not fit or was refused
2    wrong usage: an option, a file or a query that cannot be understood
70   a fault of cloudcore's own; with ``CLOUDCORE_TRACEBACK`` set, where it is
74   nobody knows whether it was done: look at what is there before the command is repeated
75   a part that is needed does not answer now: the same command may succeed later
130  interrupted
141  whoever read the output has gone, as ``| head`` does
==== ==========================================================================================
"""
