-- List the locations that release_unused would free.
local locations = redis.call('ZRANGEBYSCORE', GARBAGE, '-inf', now_ms)
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', UNUSED, '-inf', now_ms - arg.grace_ms)) do
  local location = redis.call('HGET', BLOBS, digest)
  if location then locations[#locations + 1] = location end
end
return locations
