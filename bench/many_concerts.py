"""How many bookings a second do a hundred concerts sell together?

As `python -m bench.hot_sale`, but each booking is of the next of a hundred concerts, so that few wait for the same
row; peers that group bookings take no part, there is little to group.
"""

from bench.hot_sale import measured, options_of, table_of
from bench.sellers import EVERYBODY
from bench.table import publish


def main() -> None:
    """Print the table."""
    parser = options_of(__doc__, sellers=[name for name in EVERYBODY if "grouped" not in name])
    parser.add_argument("--concerts", type=int, default=100, help="(default: %(default)s)")
    options = parser.parse_args()
    publish(table_of("many-concerts", measured(options, concerts=options.concerts)), options)


if __name__ == "__main__":
    main()
