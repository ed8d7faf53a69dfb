"""The order side of the exchange, pure: no clock, no socket, exact integers.

`amounts` the number form · `symbols` what a symbol allows (filters) · `orders` the nouns ·
`effects` what can happen to the state · `state` the fold of those effects · `engine` decides which
effects a request or a public trade has. State is only ever changed by applying an effect, live and
when a journal is read back, so that both end in the same state.
"""
