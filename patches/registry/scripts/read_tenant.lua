-- Read a tenant's record, the names of its tasks, and how many keys it has, with the position.
local prefix = arg.tenant .. '/'
local fields, keys = {}, 0
for _, field in ipairs(redis.call('HKEYS', TASKS)) do
  if string.sub(field, 1, #prefix) == prefix then fields[#fields + 1] = field end
end
local stored = redis.call('HGETALL', API_KEYS)
for at = 2, #stored, 2 do
  if cjson.decode(stored[at]).tenant == arg.tenant then keys = keys + 1 end
end
return {redis.call('GET', REVISION) or '0', last_mark(),
        redis.call('HGET', TENANTS, arg.tenant) or '', fields, keys}
