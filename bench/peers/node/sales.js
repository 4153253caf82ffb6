// The booking of the Node peers: a row lock each as anybody would write it, or many per commit.
import pg from "pg";

const LOCK = "SELECT available, price_minor, currency FROM stock WHERE concert_id = $1 FOR UPDATE";
const TAKE = "UPDATE stock SET available = available - $2, version = version + 1 WHERE concert_id = $1";
const ADD = `INSERT INTO bookings (concert_id, buyer, quantity, total_minor) VALUES ($1, $2, $3, $4)
  RETURNING id::text, created_at`;
const ADD_MANY = `INSERT INTO bookings (concert_id, buyer, quantity, total_minor)
  SELECT $1, * FROM unnest($2::text[], $3::integer[], $4::integer[]) RETURNING id::text, created_at`;

export const typeDefs = `
  type Query { ok: Boolean! }
  type Mutation { bookConcert(input: BookConcertInput!): BookConcertResult }
  input BookConcertInput { concertId: ID!, items: [BookingItemInput!]!, idempotencyKey: String }
  input BookingItemInput { ticketTypeId: ID!, quantity: Int! }
  interface Problem { code: String!, message: String! }
  type SoldOutProblem implements Problem { code: String!, message: String! }
  type BookConcertSuccess { booking: Booking! }
  union BookConcertResult = BookConcertSuccess | SoldOutProblem
  type Booking { id: ID!, status: String!, payBy: String!, total: Money!, items: [BookingItem!]! }
  type BookingItem { ticketTypeId: ID!, quantity: Int! }
  type Money { amountMinor: Int!, currency: String! }
`;

// No login, no idempotency, no limit per person, no events: the bearer token is the buyer's name.
export function resolversOf(book, buyerOf) {
  return {
    Query: { ok: () => true },
    Mutation: {
      bookConcert: async (_, { input }, context) => {
        const [item] = input.items;
        const booked = await book({ concertId: input.concertId, buyer: buyerOf(context), quantity: item.quantity });
        if (booked === null) return { __typename: "SoldOutProblem", code: "SOLD_OUT", message: "Sold out." };
        return {
          __typename: "BookConcertSuccess",
          booking: {
            id: booked.id,
            status: "AWAITING_PAYMENT",
            payBy: booked.createdAt.toISOString(),
            total: { amountMinor: booked.totalMinor, currency: booked.currency },
            items: [{ ticketTypeId: item.ticketTypeId, quantity: item.quantity }],
          },
        };
      },
    },
    BookConcertResult: { __resolveType: (value) => value.__typename },
    Problem: { __resolveType: () => "SoldOutProblem" },
  };
}

// The arguments: port, database URL, bookings per commit.
export function peer() {
  const [port, database, batchMax] = process.argv.slice(2);
  const pool = new pg.Pool({ connectionString: database });
  const book = Number(batchMax) > 1 ? groupCommit(pool, Number(batchMax)) : (order) => bookOne(pool, order);
  return { port: Number(port), book };
}

async function inTransaction(pool, work) {
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    const result = await work(client);
    await client.query("COMMIT");
    return result;
  } catch (error) {
    await client.query("ROLLBACK");
    throw error;
  } finally {
    client.release();
  }
}

// `name` makes pg prepare a statement once per connection, as asyncpg does by itself.
const ask = (client, name, text, values) => client.query({ name, text, values });

function bookOne(pool, { concertId, buyer, quantity }) {
  return inTransaction(pool, async (client) => {
    const stock = (await ask(client, "lock", LOCK, [concertId])).rows[0];
    if (stock === undefined || stock.available < quantity) return null;
    const totalMinor = stock.price_minor * quantity;
    await ask(client, "take", TAKE, [concertId, quantity]);
    const row = (await ask(client, "add", ADD, [concertId, buyer, quantity, totalMinor])).rows[0];
    return { id: row.id, totalMinor, currency: stock.currency, createdAt: row.created_at };
  });
}

function bookMany(pool, concertId, orders) {
  return inTransaction(pool, async (client) => {
    const stock = (await ask(client, "lock", LOCK, [concertId])).rows[0];
    let available = stock === undefined ? 0 : stock.available;
    const takers = orders.filter(({ quantity }) => quantity <= available && ((available -= quantity), true));
    if (takers.length === 0) return orders.map(() => null);
    const quantities = takers.map(({ quantity }) => quantity);
    const totals = quantities.map((quantity) => stock.price_minor * quantity);
    await ask(client, "take", TAKE, [concertId, quantities.reduce((sum, each) => sum + each, 0)]);
    const buyers = takers.map(({ buyer }) => buyer);
    const { rows } = await ask(client, "add many", ADD_MANY, [concertId, buyers, quantities, totals]);
    const booked = new Map(
      takers.map((order, i) => [
        order,
        { id: rows[i].id, totalMinor: totals[i], currency: stock.currency, createdAt: rows[i].created_at },
      ]),
    );
    return orders.map((order) => booked.get(order) ?? null);
  });
}

// While one transaction of a concert runs, its orders wait together for the next.
function groupCommit(pool, batchMax) {
  const waitingOf = new Map();
  async function work(concertId, waiting) {
    while (waiting.length > 0) {
      const batch = waiting.splice(0, batchMax);
      try {
        const booked = await bookMany(pool, concertId, batch.map(({ order }) => order));
        batch.forEach(({ resolve }, i) => resolve(booked[i]));
      } catch (error) {
        batch.forEach(({ reject }) => reject(error));
      }
    }
    waitingOf.delete(concertId);
  }
  return (order) =>
    new Promise((resolve, reject) => {
      const waiting = waitingOf.get(order.concertId);
      if (waiting !== undefined) {
        waiting.push({ order, resolve, reject });
        return;
      }
      const first = [{ order, resolve, reject }];
      waitingOf.set(order.concertId, first);
      void work(order.concertId, first);
    });
}
