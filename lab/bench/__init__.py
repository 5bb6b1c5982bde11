"""The benchmark: transship beside other ways to move a container, measured from outside, in one lab at one time.

`rounds` is the order of things, `move` one measurement, `systems/` the ways to move, `page` what is made of it.
`inside`, `client` and `carry` are programs that run elsewhere: standard library only, no imports of the lab.
"""
