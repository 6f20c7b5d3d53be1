-- Make an uploaded location the blob's, unless another upload was first.
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
