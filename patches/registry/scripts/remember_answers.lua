-- Keep the last answers to a tenant's users (arg.answers: user -> id of the answer). KEYS[1] has the
-- newest, KEYS[2] those before them. The newest become the older ones once there are arg.most, or
-- after half of the time for which any is kept (arg.kept_ms).
local arg = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function begin_anew()
  redis.call('RENAME', KEYS[1], KEYS[2])
  redis.call('PEXPIRE', KEYS[2], math.floor(arg.kept_ms / 2))
end

local since = redis.call('HGET', KEYS[1], 'since')
if since and now_ms - since >= arg.kept_ms / 2 then begin_anew() end
redis.call('HSETNX', KEYS[1], 'since', now_ms)
local written = {}
for user, id in pairs(arg.answers) do
  written[#written + 1] = user
  written[#written + 1] = id
end
redis.call('HSET', KEYS[1], unpack(written))
redis.call('PEXPIRE', KEYS[1], arg.kept_ms)
if redis.call('HLEN', KEYS[1]) > arg.most then begin_anew() end
return true
