"""The storm: Frontrow under load while processes are killed and connections cut at random, judged by the checker.

`make storm MINUTES=30` runs it. It goes in rounds: load and faults for some minutes, then everything is mended, comes
to rest by itself and is judged; the next round has new concerts. `world` is who runs, `crowd` who buys, `weather` what
breaks, `rounds` how it goes, `report` what is printed in the end.
"""
