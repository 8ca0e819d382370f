"""Looking at vectors that are there: what a file holds, whether it is right, what is near to what. Reads, never writes.

`files` opens outputs; `about` describes them; `checks`, `agreement`, `against` and `sample` verify them; `asking`,
`search` and `picture` use them; `locks` says what they are made with.
"""
