// graphql-ws on Node with its own server, one Redis connection for all who watch.
// The arguments: port, database URL, Redis URL.
import { EventEmitter, on } from "node:events";
import { createServer } from "node:http";
import { useServer } from "graphql-ws/use/ws";
import { createSchema } from "graphql-yoga";
import pg from "pg";
import { createClient } from "redis";
import { WebSocketServer } from "ws";

const [port, database, redisUrl] = process.argv.slice(2);
const pool = new pg.Pool({ connectionString: database });
const changes = new EventEmitter().setMaxListeners(0);

const typeDefs = `
  type Query { ok: Boolean! }
  type Subscription { ticketCount(concertId: ID!): TicketCount! }
  type TicketCount { concertId: ID!, status: String!, capacity: Int!, available: Int!, held: Int!, sold: Int!,
    version: Int!, ticketTypes: [TicketTypeCount!]! }
  type TicketTypeCount { ticketTypeId: ID!, name: String!, capacity: Int!, available: Int!, held: Int!, sold: Int!,
    price: Money! }
  type Money { amountMinor: Int!, currency: String! }
`;

function countOf(row) {
  const seats = {
    capacity: row.capacity,
    available: row.available,
    held: row.capacity - row.available,
    sold: 0,
  };
  const price = { amountMinor: row.price_minor, currency: row.currency };
  const ticketType = { ticketTypeId: row.ticket_type_id, name: "Standing", price, ...seats };
  return { concertId: row.concert_id, status: "ON_SALE", version: row.version, ...seats, ticketTypes: [ticketType] };
}

async function* watch(_, { concertId }) {
  const heard = on(changes, concertId);
  const { rows } = await pool.query("SELECT * FROM stock WHERE concert_id = $1", [concertId]);
  yield { ticketCount: countOf(rows[0]) };
  for await (const [count] of heard) yield { ticketCount: count };
}

const schema = createSchema({ typeDefs, resolvers: { Subscription: { ticketCount: { subscribe: watch } } } });
const redis = createClient({ url: redisUrl });
await redis.connect();
await redis.pSubscribe("count:*", (message, channel) => {
  changes.emit(channel.slice("count:".length), JSON.parse(message));
});
const server = createServer();
useServer({ schema }, new WebSocketServer({ server, path: "/graphql" }));
server.listen(Number(port), "127.0.0.1");
