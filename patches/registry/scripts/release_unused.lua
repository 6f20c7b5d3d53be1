-- Take up to 100 unused blobs and 100 abandoned uploads out of the index; the caller frees the
-- returned locations.
local unused = redis.call('ZRANGEBYSCORE', UNUSED, '-inf', now_ms - arg.grace_ms, 'LIMIT', 0, 100)
local locations = redis.call('ZRANGEBYSCORE', GARBAGE, '-inf', now_ms, 'LIMIT', 0, 100)
for _, digest in ipairs(unused) do
  local location = redis.call('HGET', BLOBS, digest)
  if location then
    locations[#locations + 1] = location
    -- pcall: this must work when Redis is out of memory, and the note only matters if the caller
    -- dies before it has freed the location
    redis.pcall('ZADD', GARBAGE, now_ms, location)
  end
  redis.call('HDEL', BLOBS, digest)
  redis.call('ZREM', UNUSED, digest)
end
return locations
