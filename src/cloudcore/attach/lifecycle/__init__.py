"""What an attachment is, in which states it can be, and what decides where it goes next. Pure throughout.

Knows the state table, the records that the journal keeps, the rules of attaching, and what counts as evidence that a
host is dead. Must not know how anything is stored or done: values in, values out.
"""
