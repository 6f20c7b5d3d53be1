"""Bundles' bytes: announced, completed, freed."""

from peterrec.patches.registry.scripts.prelude import PRELUDE

BEGIN_UPLOAD = (
    PRELUDE
    + """
local location = redis.call('HGET', BLOBS, arg.digest)
if location then
  if redis.call('ZSCORE', UNUSED, arg.digest) then
    redis.call('ZADD', UNUSED, now_ms, arg.digest)
  end
else
  redis.call('ZADD', GARBAGE, now_ms + arg.expires_ms, arg.location)
end
return done({is_present = location ~= false})
"""
)

FINISH_UPLOAD = (
    PRELUDE
    + """
if redis.call('ZSCORE', GARBAGE, arg.location) == false then return fail('upload_expired') end
if redis.call('HSETNX', BLOBS, arg.digest, arg.location) == 0 then
  redis.call('ZADD', GARBAGE, now_ms, arg.location)
else
  redis.call('ZREM', GARBAGE, arg.location)
  if redis.call('HEXISTS', REFS, arg.digest) == 0 then
    redis.call('ZADD', UNUSED, now_ms, arg.digest)
  end
end
return done({is_present = true})
"""
)

RELEASE_UNUSED = (
    PRELUDE
    + """
local unused = redis.call('ZRANGEBYSCORE', UNUSED, '-inf', now_ms - arg.grace_ms, 'LIMIT', 0, 100)
local locations = redis.call('ZRANGEBYSCORE', GARBAGE, '-inf', now_ms, 'LIMIT', 0, 100)
for _, digest in ipairs(unused) do
  local location = redis.call('HGET', BLOBS, digest)
  if location then
    locations[#locations + 1] = location
    -- pcall: out of memory is when this must work; the note only matters if the caller dies
    redis.pcall('ZADD', GARBAGE, now_ms, location)
  end
  redis.call('HDEL', BLOBS, digest)
  redis.call('ZREM', UNUSED, digest)
end
return locations
"""
)

LIST_UNUSED = (
    PRELUDE
    + """
local locations = redis.call('ZRANGEBYSCORE', GARBAGE, '-inf', now_ms)
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', UNUSED, '-inf', now_ms - arg.grace_ms)) do
  local location = redis.call('HGET', BLOBS, digest)
  if location then locations[#locations + 1] = location end
end
return locations
"""
)
