"""What is made of the answers: the merge of ordered cells, where a page ends, pages, streams, placeholders.

Knows queries and cells, of the directory only its interface. Must not know any one table, nor the router.
"""
