"""How many bookings a second do a hundred concerts sell together?

As `python -m bench.hot_sale`, but everybody books the next of a hundred concerts, so that few wait for the same row.
"""

from bench.hot_sale import measured, options_of, table_of
from bench.table import publish


def main() -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--concerts", type=int, default=100, help="(default: %(default)s)")
    options = parser.parse_args()
    publish(table_of("many-concerts", measured(options, concerts=options.concerts)), options)


if __name__ == "__main__":
    main()
