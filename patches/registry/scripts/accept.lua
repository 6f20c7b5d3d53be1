-- Let the registry that is here replace another one (arg.lost: its identity and the revision at which it
-- was known), if it is still at the position that the operator has seen. The revision rises above both,
-- so that no number is used twice.
local found = tonumber(redis.call('GET', REVISION) or '0')
if found ~= arg.since or last_mark() ~= arg.seen_mark then return fail('stale', found) end
local FOREVER = 99999999999999
local before = identity()
local revision = math.max(found, arg.lost.revision) + 1
redis.call('SET', REVISION, revision)
local ids = {{arg.lost.identity, FOREVER}}
if found > 0 and before ~= arg.lost.identity then ids[2] = {before, found} end
supersede(ids)
record(revision, 'accept', {note = arg.note})
return done({revision = revision})
