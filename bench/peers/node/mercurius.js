// mercurius on fastify with its JIT on.
import Fastify from "fastify";
import mercurius from "mercurius";
import { peer, resolversOf, typeDefs } from "./sales.js";

const { port, book } = peer();
const buyerOf = ({ reply }) => reply.request.headers.authorization;
const app = Fastify();
await app.register(mercurius, { schema: typeDefs, resolvers: resolversOf(book, buyerOf), jit: 1 });
await app.listen({ port, host: "127.0.0.1" });
