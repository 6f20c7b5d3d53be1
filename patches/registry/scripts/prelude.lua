-- Shared by every script that changes something, after keys.lua. A script returns its outcome as
-- JSON, or `error` with what it found.
--
-- The first write of every script is one that Redis refuses when it is out of memory or a replica,
-- so a script that cannot finish has changed nothing.

-- The audit trail keeps at least this many changes.
local EVENTS_KEPT = 10000

-- A task remembers at most this many earlier states for rollbacks.
local STATES_KEPT = 50

-- The outcome of a request is kept this long. A client that lost the answer sends the same request
-- again and receives the same outcome instead of making a second change.
local OUTCOME_KEPT_S = 60

local PROD = 'prod'

local replay = redis.call('GET', REQUEST)
if replay then return replay end

local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function done(outcome)
  local text = cjson.encode(outcome)
  redis.call('SET', REQUEST, text, 'EX', OUTCOME_KEPT_S)
  return text
end

local function fail(code, found)
  return cjson.encode({error = code, found = found})
end

-- No change is made to a registry that does not hold what the caller knows of it: it would be a
-- change of another one.
local lost = loss_of(arg.known)
if lost then
  return cjson.encode({error = 'registry_lost', reason = lost,
                       found = tonumber(redis.call('GET', REVISION) or '0')})
end

local function new_revision()
  local revision = redis.call('INCR', REVISION)
  redis.call('HSETNX', IDENTITY, 'id', arg.mark)
  return revision
end

local function record(revision, action, fields)
  local entry = {'action', action, 'actor', arg.actor, 'mark', arg.mark,
                 'at_ms', string.format('%.0f', now_ms)}
  for name, value in pairs(fields) do
    entry[#entry + 1] = name
    entry[#entry + 1] = tostring(value)
  end
  redis.call('XADD', CHANGES, 'MAXLEN', '~', EVENTS_KEPT, revision .. '-0', unpack(entry))
end

local function load_task()
  local text = redis.call('HGET', TASKS, arg.field)
  return text and cjson.decode(text) or nil
end

local function new_task()
  return {created_ms = now_ms, next_version = 1, description = '', is_sensitive = false,
          aliases = {}}
end

local function save_task(task, revision)
  task.revision = revision
  task.updated_ms = now_ms
  redis.call('HSET', TASKS, arg.field, cjson.encode(task))
end

local function stale(task)
  local found = task and task.revision or 0
  if arg.if_match and arg.if_match ~= found then return fail('stale', found) end
  return nil
end

local function load_version(digest)
  local text = redis.call('HGET', VERSIONS, digest)
  return text and cjson.decode(text) or nil
end

-- A task's state is what a rollback restores: where its aliases point, and its traffic.

local function state_of(task)
  return cjson.encode({aliases = task.aliases, traffic = task.traffic})
end

local function remember(state)
  redis.call('RPUSH', STATES, state)
  redis.call('LTRIM', STATES, -STATES_KEPT, -1)
end

local function text_of(traffic)
  return traffic and traffic.text or nil
end

local function is_same_state(one, other)
  if text_of(one.traffic) ~= text_of(other.traffic) then return false end
  for alias, target in pairs(one.aliases) do
    local found = other.aliases[alias]
    if not found or found.digest ~= target.digest then return false end
  end
  for alias, _ in pairs(other.aliases) do
    if not one.aliases[alias] then return false end
  end
  return true
end

-- Rewrite the remembered states: change(state) edits one and returns false to drop it.
local function revise_states(change)
  local kept = {}
  for _, text in ipairs(redis.call('LRANGE', STATES, 0, -1)) do
    local state = cjson.decode(text)
    if change(state) then kept[#kept + 1] = cjson.encode(state) end
  end
  redis.call('DEL', STATES)
  if #kept > 0 then redis.call('RPUSH', STATES, unpack(kept)) end
end

local function names(task, alias, digest)
  local target = task.aliases[alias]
  return target ~= nil and target.digest == digest
end

local function is_in_traffic(task, digest)
  return task.traffic ~= nil and task.traffic.versions[digest] ~= nil
end

local function point(task, alias, digest, version)
  local was = task.aliases[alias]
  task.aliases[alias] = {digest = digest, version = version}
  return was and was.digest or nil
end

local function drop_ref(digest)
  if redis.call('HINCRBY', REFS, digest, -1) <= 0 then
    redis.call('HDEL', REFS, digest)
    redis.call('ZADD', UNUSED, now_ms, digest)
  end
end

-- The digest of what a version's answers can say: as the caller knows it, or from the version's
-- summary; nil for a version that is older than these digests.
local function outputs_of(digest)
  local given = arg.outputs and arg.outputs[digest]
  if given then return given end
  local version = load_version(digest)
  local found = version and cjson.decode(version.summary).outputs_digest
  return found ~= '' and found or nil
end

-- Refuse that callers who got the answers of `target` get those of `digest` with other outputs. If
-- an old version does not say its outputs, the caller reads them and runs the script again.
local function other_outputs(digest, target)
  if arg.allow_new_outputs or not target or target.digest == digest then return nil end
  local before, after = outputs_of(target.digest), outputs_of(digest)
  if before and before == after then return nil end
  return cjson.encode({error = before and after and 'outputs_differ' or 'outputs_unknown',
                       digest = digest, previous = target.digest, found = target.version})
end

-- What the audit trail notes of a change that was allowed to give the callers of `target` other
-- outputs; nil if it does not.
local function outputs_note(digest, target)
  if not arg.allow_new_outputs or not target or target.digest == digest then return nil end
  local before, after = outputs_of(target.digest), outputs_of(digest)
  if before and before == after then return nil end
  return 'new outputs were allowed'
end
