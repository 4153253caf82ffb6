"""The Lua scripts of the read model in Redis. Redis runs each of them as one atomic step.

Keys, all beginning with `frontrow:read-model`:

    ...                        hash    current, run_id: the generation that is complete, and the server it was
                                       completed on; building, building_run_id: the one being filled
    ...:lease                  string  who may fill it
    ...:<g>:sales              hash    concert -> "<version>\\n<Sale>"
    ...:<g>:facts              hash    concert -> "<version>\\n<ConcertFacts>"
    ...:<g>:{<user>}:bookings  hash    booking -> "<version> <status> <concert>\\n<Booking>"
    ...:<g>:{<user>}:<STATUS>  zset    "<created_at> <booking>", all of one score: ordered by their bytes
    ...:<g>:{<user>}:version   string  every change up to it is in
    ...:<g>:{<user>}:ahead     zset    changes that came before an earlier one did

The generation's name is only known inside, so scripts reach keys that they do not declare: this is for one
primary with any replicas, not for Redis Cluster. The server should not evict keys (maxmemory-policy
noeviction): a missing document sends its readers to the database, a missing set would go unnoticed.
"""

STATE = "frontrow:read-model"
LEASE = "frontrow:read-model:lease"

_COMMON = f"""
local STATE, LEASE = '{STATE}', '{LEASE}'

-- A restarted server, or a replica that took over, may hold older data: its run id differs. Takes 6 us.
local function run_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
end

local function complete()
  local state = redis.call('HMGET', STATE, 'current', 'run_id')
  if state[1] and state[2] == run_id() then return STATE .. ':' .. state[1] .. ':' end
end

local function owns(token)
  return redis.call('GET', LEASE) == token and redis.call('HGET', STATE, 'building') == token
end
"""

_SET = """
local function set_newer(key, field, version, doc)
  local old = redis.call('HGET', key, field)
  if old and tonumber(string.match(old, '^%d+')) >= version then return false end
  redis.call('HSET', key, field, doc)
  return true, old
end

-- The version passes every change that has joined it without a gap.
local function advance(buyer, version)
  redis.call('ZREMRANGEBYSCORE', buyer .. 'ahead', '-inf', version)
  while redis.call('ZREM', buyer .. 'ahead', version + 1) == 1 do version = version + 1 end
  redis.call('SET', buyer .. 'version', version)
end

local function set(generation, batch)
  local at = STATE .. ':' .. generation .. ':'
  for _, sale in ipairs(batch.sales) do set_newer(at .. 'sales', sale[1], sale[2], sale[3]) end
  for _, fact in ipairs(batch.facts) do set_newer(at .. 'facts', fact[1], fact[2], fact[3]) end
  for _, booking in ipairs(batch.bookings) do
    local user, id, version, status, member, doc = unpack(booking)
    local buyer = at .. '{' .. user .. '}:'
    local is_newer, old = set_newer(buyer .. 'bookings', id, version, doc)
    if is_newer then
      if old then redis.call('ZREM', buyer .. string.match(old, '^%d+ (%S+)'), member) end
      redis.call('ZADD', buyer .. status, 0, member)
    end
  end
  for _, step in ipairs(batch.versions) do
    local buyer = at .. '{' .. step[1] .. '}:'
    advance(buyer, math.max(step[2], tonumber(redis.call('GET', buyer .. 'version') or 0)))
  end
  for _, step in ipairs(batch.changes) do
    local buyer = at .. '{' .. step[1] .. '}:'
    redis.call('ZADD', buyer .. 'ahead', step[2], step[2])
    advance(buyer, tonumber(redis.call('GET', buyer .. 'version') or 0))
  end
end
"""

# ARGV: batch. Into the generation that is read and the one that is being filled.
PROJECT = f"""{_COMMON}{_SET}
local batch = cjson.decode(ARGV[1])
for _, generation in ipairs({{'current', 'building'}}) do
  local name = redis.call('HGET', STATE, generation)
  if name then set(name, batch) end
end
"""

# ARGV: 'sales' or 'facts', concerts. Answers a document or nil for each, or nil where not complete.
READ_DOCS = f"""{_COMMON}
local at = complete()
if not at then return false end
if #ARGV == 1 then return {{}} end
return redis.call('HMGET', at .. ARGV[1], unpack(ARGV, 2))
"""

# ARGV: how many statuses, statuses, buyers. Answers the digest of all that is held of each buyer, or nil where not
# complete: what their pages show, in its order, and how many bookings there are. One text: redis-py reads a list
# an element at a time.
DIGESTS = f"""{_COMMON}
local at = complete()
if not at then return false end
-- Lua's unpack takes no more at once than its stack holds (8,000, LUAI_MAXCSTACK).
local FIELDS_MAX = 1000
local digests, last = {{}}, 1 + tonumber(ARGV[1])
for i = last + 1, #ARGV do
  local buyer = at .. '{{' .. ARGV[i] .. '}}:'
  local held = {{redis.call('GET', buyer .. 'version') or '0', redis.call('HLEN', buyer .. 'bookings')}}
  for j = 2, last do
    local members = redis.call('ZRANGE', buyer .. ARGV[j], 0, -1)
    for first = 1, #members, FIELDS_MAX do
      local ids = {{}}
      for k = first, math.min(first + FIELDS_MAX - 1, #members) do
        ids[#ids + 1] = string.match(members[k], ' (.*)$')
      end
      for n, doc in ipairs(redis.call('HMGET', buyer .. 'bookings', unpack(ids))) do
        held[#held + 1] = ARGV[j] .. ' ' .. members[first + n - 1] .. ' ' .. (doc or '')
      end
    end
  end
  digests[#digests + 1] = redis.sha1hex(table.concat(held, '\\n'))
end
return table.concat(digests, ' ')
"""

# ARGV: user, limit, cursor or '', statuses. Answers version, total, has_next, bookings and facts, or nil
# where not complete. Reads at most limit + 1 members of each status and merges them.
READ_PAGE = f"""{_COMMON}
local at = complete()
if not at then return false end
local limit, buyer = tonumber(ARGV[2]), at .. '{{' .. ARGV[1] .. '}}:'

-- By bytes, as the sets are ordered: Lua's own < follows the server's locale.
local function is_newer(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  return #a > #b
end

local lists, total, start = {{}}, 0, ARGV[3] == '' and '+' or '(' .. ARGV[3]
for i = 4, #ARGV do
  local key = buyer .. ARGV[i]
  total = total + redis.call('ZCARD', key)
  local members = redis.call('ZREVRANGEBYLEX', key, start, '-', 'LIMIT', 0, limit + 1)
  if #members > 0 then lists[#lists + 1] = {{members = members, at = 1}} end
end

local function take_newest()
  local best
  for _, list in ipairs(lists) do
    local member = list.members[list.at]
    if member and (not best or is_newer(member, best.members[best.at])) then best = list end
  end
  if not best then return nil end
  best.at = best.at + 1
  return best.members[best.at - 1]
end

local ids, concerts, is_known = {{}}, {{}}, {{}}
local member = take_newest()
while member and #ids < limit do
  ids[#ids + 1] = string.match(member, ' (.*)$')
  member = take_newest()
end
local version, bookings, facts = tonumber(redis.call('GET', buyer .. 'version') or 0), {{}}, {{}}
if #ids > 0 then bookings = redis.call('HMGET', buyer .. 'bookings', unpack(ids)) end
for _, doc in ipairs(bookings) do
  local concert = doc and string.match(doc, '^%S+ %S+ (%S+)')
  if concert and not is_known[concert] then
    is_known[concert] = true
    concerts[#concerts + 1] = concert
  end
end
if #concerts > 0 then facts = redis.call('HMGET', at .. 'facts', unpack(concerts)) end
return {{version, total, member and 1 or 0, bookings, facts}}
"""

# ARGV: token, lease in ms. Answers 1, or 0 while somebody else holds the lease.
BEGIN = f"""{_COMMON}
if not redis.call('SET', LEASE, ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
redis.call('HSET', STATE, 'building', ARGV[1], 'building_run_id', run_id())
return 1
"""

# ARGV: token, lease in ms, batch. Renews the lease. Answers 1, or 0 where it is lost.
ADD = f"""{_COMMON}{_SET}
if not owns(ARGV[1]) then return 0 end
redis.call('PEXPIRE', LEASE, ARGV[2])
set(ARGV[1], cjson.decode(ARGV[3]))
return 1
"""

# ARGV: token. Answers 1, or 0 where the lease is lost or the server restarted meanwhile.
SWITCH = f"""{_COMMON}
if not owns(ARGV[1]) or redis.call('HGET', STATE, 'building_run_id') ~= run_id() then return 0 end
redis.call('HSET', STATE, 'current', ARGV[1], 'run_id', run_id())
redis.call('HDEL', STATE, 'building', 'building_run_id')
return 1
"""

# ARGV: token.
CLOSE = f"""{_COMMON}
if redis.call('HGET', STATE, 'building') == ARGV[1] then
  redis.call('HDEL', STATE, 'building', 'building_run_id')
end
if redis.call('GET', LEASE) == ARGV[1] then redis.call('DEL', LEASE) end
"""

# Answers 1 where the read model is not complete. What a dead process was filling is no longer projected into.
CHECK = f"""{_COMMON}
if redis.call('EXISTS', LEASE) == 0 then redis.call('HDEL', STATE, 'building', 'building_run_id') end
if complete() then return 0 end
redis.call('HDEL', STATE, 'current', 'run_id')
return 1
"""

# ARGV: cursor, count. Answers the next cursor and concerts, one on a line.
SCAN_CONCERTS = f"""{_COMMON}
local at = complete()
if not at then return {{'0', ''}} end
local scan = redis.call('HSCAN', at .. 'sales', ARGV[1], 'COUNT', ARGV[2])
local concerts = {{}}
for i = 1, #scan[2], 2 do concerts[#concerts + 1] = scan[2][i] end
return {{scan[1], table.concat(concerts, '\\n')}}
"""

# ARGV: cursor, count. Answers the next cursor and buyers, one on a line.
SCAN_USERS = f"""{_COMMON}
local at = complete()
if not at then return {{'0', ''}} end
local scan = redis.call('SCAN', ARGV[1], 'MATCH', at .. '{{*}}:version', 'COUNT', ARGV[2])
local users = {{}}
for _, key in ipairs(scan[2]) do users[#users + 1] = string.match(key, '{{(.*)}}') end
return {{scan[1], table.concat(users, '\\n')}}
"""

# ARGV: cursor, count. Deletes the keys of every generation but the two. Answers the next cursor and nothing.
SWEEP = f"""{_COMMON}
local scan = redis.call('SCAN', ARGV[1], 'MATCH', STATE .. ':*', 'COUNT', ARGV[2])
local state = redis.call('HMGET', STATE, 'current', 'building')
for _, key in ipairs(scan[2]) do
  local generation = string.match(key, '^frontrow:read%-model:(%x+):')
  if generation and generation ~= state[1] and generation ~= state[2] then redis.call('UNLINK', key) end
end
return {{scan[1], ''}}
"""
