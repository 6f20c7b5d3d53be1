-- Tell what this replica saw of tenants, and lease its share of their quotas. KEYS[1] has the
-- replicas (id -> ms of their last exchange), KEYS[2] what they say of themselves (id -> JSON); the
-- others are the records of one tenant each (id of a replica -> JSON), in the order of arg.reports. No quota is leased twice: a share grows only by what
-- the other replicas have given back.
local arg = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('HSET', KEYS[1], arg.replica, now_ms)
redis.call('PEXPIRE', KEYS[1], arg.kept_ms)
redis.call('HSET', KEYS[2], arg.replica, arg.presence)
redis.call('PEXPIRE', KEYS[2], arg.kept_ms)
local is_live, live_count = {}, 0
local stored = redis.call('HGETALL', KEYS[1])
for at = 1, #stored, 2 do
  if now_ms - stored[at + 1] < arg.live_ms then
    is_live[stored[at]] = true
    live_count = live_count + 1
  else
    redis.call('HDEL', KEYS[1], stored[at])
    redis.call('HDEL', KEYS[2], stored[at])
  end
end

local function others_of(key)
  local found = {}
  local records = redis.call('HGETALL', key)
  for at = 1, #records, 2 do
    if not is_live[records[at]] then
      redis.call('HDEL', key, records[at])
    elseif records[at] ~= arg.replica then
      found[#found + 1] = cjson.decode(records[at + 1])
    end
  end
  return found
end

local function share_of(own, others, resource)
  local asked, leased = own.asked[resource], 0
  for _, other in ipairs(others) do
    asked = asked + other.asked[resource]
    leased = leased + other.shares[resource]
  end
  -- What nobody asks for is shared equally, and a little always is.
  local spare = math.max(1 - asked, arg.reserve)
  local wanted = spare / live_count
  if asked > 0 then wanted = wanted + (1 - spare) * own.asked[resource] / asked end
  return math.max(math.min(wanted, 1 - leased), arg.least)
end

local answers = {}
for number, own in ipairs(arg.reports) do
  local key = KEYS[2 + number]
  local others = others_of(key)
  own.shares = {}
  for resource = 1, #own.asked do own.shares[resource] = share_of(own, others, resource) end
  redis.call('HSET', key, arg.replica, cjson.encode(own))
  redis.call('PEXPIRE', key, arg.kept_ms)
  local elsewhere = {}
  for place = 1, #own.used do
    elsewhere[place] = 0
    for _, other in ipairs(others) do elsewhere[place] = elsewhere[place] + other.used[place] end
  end
  answers[number] = {shares = own.shares, elsewhere = elsewhere}
end
if #answers == 0 then return cjson.encode({replicas = live_count}) end  -- {} would be no list
return cjson.encode({replicas = live_count, tenants = answers})
