-- Which registry this is. Its identity is a random id that the first change writes. An operator's act
-- that replaces what readers know (an import, or the acceptance of another state) gives it a new one,
-- and lists the old ones that it supersedes, each up to a revision.

local SUPERSEDED_KEPT = 100

local function identity()
  return redis.call('HGET', IDENTITY, 'id') or ''
end

local function superseded()
  local text = redis.call('HGET', IDENTITY, 'supersedes')
  return text and cjson.decode(text) or {}
end

-- Become a new registry to which those that knew one of `ids` (pairs of an id and a revision) may go
-- over, if they knew nothing later than that revision.
local function supersede(ids)
  local all = superseded()
  for _, pair in ipairs(ids) do all[#all + 1] = pair end
  while #all > SUPERSEDED_KEPT do table.remove(all, 1) end
  redis.call('HSET', IDENTITY, 'id', arg.mark, 'supersedes', cjson.encode(all))
end

-- Why this registry does not hold what a caller knows of it (`known`: identity, revision and mark of a
-- change); nil if it does. What it knows may be recorded in the trail, no longer be kept there, or be
-- superseded.
local function loss_of(known)
  if not known or known.revision == 0 then return nil end
  for _, pair in ipairs(superseded()) do
    if pair[1] == known.identity and known.revision <= pair[2] then return nil end
  end
  local revision = tonumber(redis.call('GET', REVISION) or '0')
  if revision == 0 then return 'emptied' end
  local id = known.revision .. '-0'
  local entry = redis.call('XRANGE', CHANGES, id, id)[1]
  if entry and known.mark ~= '' and mark_of(entry[2]) == known.mark then return nil end
  if known.identity ~= '' and known.identity ~= identity() then return 'other' end
  if revision < known.revision then return 'went_back' end
  if entry and known.mark ~= '' then return 'forked' end
  return nil
end
