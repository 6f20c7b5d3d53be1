-- The mark of a change is a random text in its stream entry. Redis may come back with an older
-- state and continue from there; the mark then distinguishes two changes that have one number.

local function mark_of(fields)
  for at = 1, #fields, 2 do
    if fields[at] == 'mark' then return fields[at + 1] end
  end
  return ''
end

local function last_mark()
  local last = redis.call('XREVRANGE', CHANGES, '+', '-', 'COUNT', 1)[1]
  return last and mark_of(last[2]) or ''
end
