"""Moving everything: reading a task as it is stored, and replacing all by what was staged."""

from peterrec.patches.registry.scripts.prelude import KEY_NAMES, PRELUDE

READ_STORED_TASK = """
return {redis.call('HGET', KEYS[2], cjson.decode(ARGV[1]).field) or '',
        redis.call('HGETALL', KEYS[10]), redis.call('LRANGE', KEYS[11], 0, -1)}
"""

READ_REST = """
return {redis.call('GET', KEYS[1]) or '0', redis.call('HGETALL', KEYS[4]),
        redis.call('XRANGE', KEYS[3], '-', '+')}
"""

STAGED_NAMES = ("tasks", "keys", "changes", "refs")
"""Keys that are staged once, in the order in which they follow KEY_NAMES; then, for each old task,
its versions and states, and for each new one, the staged and the final key of both."""

STAGE_EVENTS = """
for _, event in ipairs(cjson.decode(ARGV[1]).events) do
  redis.call('XADD', KEYS[1], event.revision .. '-0', unpack(event.fields))
end
"""

IMPORT = (
    PRELUDE
    + f"""
local own = {len(KEY_NAMES)}
local staged_refs = KEYS[own + 4]
local finals = {{TASKS, API_KEYS, CHANGES, REFS}}
"""
    + """
local found = tonumber(redis.call('GET', REVISION) or '0')
local last = redis.call('XREVRANGE', CHANGES, '+', '-', 'COUNT', 1)[1]
local mark = ''
for at = 1, last and #last[2] or 0, 2 do
  if last[2][at] == 'mark' then mark = last[2][at + 1] end
end
if found ~= arg.since or mark ~= arg.seen_mark then return fail('stale', found) end
local digests = redis.call('HKEYS', staged_refs)
for _, digest in ipairs(digests) do
  if redis.call('HEXISTS', BLOBS, digest) == 0 then
    return cjson.encode({error = 'blob_missing', digest = digest})
  end
end

redis.call('SET', REVISION, arg.revision)
local at = own + 4
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
record(arg.revision, 'import', {note = arg.note})
return done({revision = arg.revision})
"""
)
