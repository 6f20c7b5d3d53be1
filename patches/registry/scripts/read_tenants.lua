-- Read the records of all tenants, and the names of those that have tasks or keys.
local named = {}
for _, field in ipairs(redis.call('HKEYS', TASKS)) do
  named[string.sub(field, 1, string.find(field, '/', 1, true) - 1)] = true
end
for _, text in ipairs(redis.call('HVALS', API_KEYS)) do named[cjson.decode(text).tenant] = true end
local names = {}
for name, _ in pairs(named) do names[#names + 1] = name end
return {redis.call('HGETALL', TENANTS), names}
