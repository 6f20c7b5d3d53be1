-- Take the marks of predictions whose outcomes are told, each once: 1 for one that is new. KEYS[1]
-- has the newest marks of a tenant, KEYS[2] those before them; both together have arg.most at least
-- before the oldest are forgotten, and the double at most.
local arg = cjson.decode(ARGV[1])
local is_new = {}
for at, mark in ipairs(arg.marks) do
  if redis.call('SISMEMBER', KEYS[2], mark) == 1 then
    is_new[at] = 0
  else
    is_new[at] = redis.call('SADD', KEYS[1], mark)
  end
end
redis.call('PEXPIRE', KEYS[1], arg.kept_ms)
if redis.call('SCARD', KEYS[1]) >= arg.most then redis.call('RENAME', KEYS[1], KEYS[2]) end
return is_new
