-- Look whether a blob is stored. If it is not, note the new location as garbage from a later time
-- on, so that an abandoned upload is freed.
local location = redis.call('HGET', BLOBS, arg.digest)
if location then
  if redis.call('ZSCORE', UNUSED, arg.digest) then
    redis.call('ZADD', UNUSED, now_ms, arg.digest)
  end
else
  redis.call('ZADD', GARBAGE, now_ms + arg.expires_ms, arg.location)
end
return done({is_present = location ~= false})
