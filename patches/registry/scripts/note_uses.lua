-- Note when secrets of API keys were used last, in ms: the latest time counts, and keys that were
-- revoked meanwhile are left out. This is no change: it has no revision.
for key_id, uses in pairs(arg.uses) do
  if redis.call('HEXISTS', API_KEYS, key_id) == 1 then
    local text = redis.call('HGET', KEY_USES, key_id)
    local found = text and cjson.decode(text) or {}
    for number, at_ms in pairs(uses) do
      found[number] = math.max(found[number] or 0, at_ms)
    end
    redis.call('HSET', KEY_USES, key_id, cjson.encode(found))
  end
end
return true
