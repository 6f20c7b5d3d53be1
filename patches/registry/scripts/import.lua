-- Replace the whole registry by what an import has staged, if it is still at the position that the
-- import saw. After the usual keys (arg.own_keys of them) KEYS holds: the staged tasks, keys,
-- changes, refs, tenants and availability; the versions and states of each old task (arg.old_keys in
-- all); then,
-- for each new task, the staged and the final key of its versions and of its states.
local own = arg.own_keys
local staged_refs = KEYS[own + 4]
local finals = {TASKS, API_KEYS, CHANGES, REFS, TENANTS, AVAILABILITY}

local found = tonumber(redis.call('GET', REVISION) or '0')
if found ~= arg.since or last_mark() ~= arg.seen_mark then return fail('stale', found) end
local digests = redis.call('HKEYS', staged_refs)
for _, digest in ipairs(digests) do
  if redis.call('HEXISTS', BLOBS, digest) == 0 then
    return cjson.encode({error = 'blob_missing', digest = digest})
  end
end

local before = identity()
redis.call('SET', REVISION, arg.revision)
supersede(found > 0 and {{before, found}, unpack(arg.supersedes)} or arg.supersedes)
local at = own + #finals
for _ = 1, arg.old_keys do
  at = at + 1
  redis.call('DEL', KEYS[at])
end
local function replace(staged, final)
  redis.call('DEL', final)
  if redis.call('EXISTS', staged) == 1 then
    redis.call('RENAME', staged, final)
    redis.call('PERSIST', final)
  end
end
for index, final in ipairs(finals) do replace(KEYS[own + index], final) end
while KEYS[at + 1] do
  replace(KEYS[at + 1], KEYS[at + 2])
  at = at + 2
end
for _, digest in ipairs(redis.call('HKEYS', BLOBS)) do
  if redis.call('HEXISTS', REFS, digest) == 1 then
    redis.call('ZREM', UNUSED, digest)
  else
    redis.call('ZADD', UNUSED, 'NX', now_ms, digest)
  end
end
for _, key_id in ipairs(redis.call('HKEYS', KEY_USES)) do
  if redis.call('HEXISTS', API_KEYS, key_id) == 0 then redis.call('HDEL', KEY_USES, key_id) end
end
record(arg.revision, arg.action, {note = arg.note})
return done({revision = arg.revision})
