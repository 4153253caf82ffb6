// graphql-yoga as it comes, on Node's own HTTP server.
import { createServer } from "node:http";
import { createSchema, createYoga } from "graphql-yoga";
import { peer, resolversOf, typeDefs } from "./sales.js";

const { port, book } = peer();
const buyerOf = ({ request }) => request.headers.get("authorization");
const yoga = createYoga({ schema: createSchema({ typeDefs, resolvers: resolversOf(book, buyerOf) }) });
createServer(yoga).listen(port, "127.0.0.1");
